"""``python -m kvnode``: the same command line as the installed ``kvnode``."""

from kvnode.cli.main import main

main()
