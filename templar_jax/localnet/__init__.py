"""A whole network on one machine: miners and validators as real processes, watched through the files they write."""
