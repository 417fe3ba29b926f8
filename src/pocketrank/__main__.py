"""The command line, as `python -m pocketrank` or under `torchrun -m pocketrank`."""

from pocketrank.sdk_demo.cli import main

if __name__ == "__main__":
    main()
