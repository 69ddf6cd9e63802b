"""Work with datasets: ``python -m ofrecord check|show|index|merge|export``."""

from runtime.environment import check_environment

check_environment(__name__)

import sys

from runtime.cli import ArgumentParser, run_main

from .commands import check, export, index, merge, show

COMMANDS = {"check": check, "show": show, "index": index, "merge": merge, "export": export}


def main() -> None:
    parser = ArgumentParser(prog="python -m ofrecord", description="Work with OFRecord datasets.")
    actions = parser.add_subparsers(metavar="|".join(COMMANDS), required=True)
    for name, module in COMMANDS.items():
        command = actions.add_parser(name, help=module.HELP, description=f"{module.HELP}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args()
    if "" in sys.argv:
        parser.error("an argument is empty, such as a variable that is not set")
    args.run(args)


if __name__ == "__main__":
    run_main(main)
