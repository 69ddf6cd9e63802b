"""The commands of ``python -m ofrecord``: each is a module with its help, arguments and run()."""
