#!/bin/sh
# Makes .venv from $1, or from the first Python here that is 3.11 or newer, whatever `python3` is.
# 3.11 comes first: it is the one that the project is developed on.
set -eu

fits() {  # a name can exist and still not run (version managers leave such shims)
  command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

found=""
for python in ${1:-python3.11 python3.12 python3.13 python3 python}; do
  if fits "$python"; then found=$python; break; fi
done
if [ -z "$found" ]; then
  echo "No Python 3.11 or newer ${1:+at $1 }here. Install one (for example the package python3.11 and python3.11-venv)," >&2
  echo "or name it: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
fi

echo "Making .venv with $($found --version)"
rm -rf .venv
if ! "$found" -m venv .venv; then
  rm -rf .venv
  echo "$found cannot make a virtual environment. On Debian and Ubuntu install its package python3.X-venv, then try again." >&2
  exit 1
fi
