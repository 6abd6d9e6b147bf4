"""`python -m llava_uhd`: the command line where the script `llava-uhd` is not on the path."""

from .cli import main

if __name__ == "__main__":
    main()
