"""One miner in several processes: process 0 decides and announces, all of them compute."""
