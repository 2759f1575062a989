"""`python -m benchmarks`: the attention benchmark of this machine."""

from benchmarks.attention import main

if __name__ == "__main__":
    main()
