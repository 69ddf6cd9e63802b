"""Work with datasets: ``python -m ofrecord check|show|index|merge|export``."""

from runtime.environment import check_environment

check_environment(__name__)

import os
from contextlib import suppress

from runtime.cli import ArgumentParser, InputError, run_main

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
    folders = getattr(args, "sources", None) or [args.folder]
    if "" in (*vars(args).values(), *folders):
        parser.error("an argument is empty, such as a variable that is not set")
    for folder in folders:
        check_rights(folder)
    args.run(args)


def check_rights(folder: str) -> None:
    """Raise InputError for a folder that may not be looked into; others are the command's business."""
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            os.stat(os.path.join(folder, "."))
            os.listdir(folder)
        except PermissionError as error:
            raise InputError(f"cannot read {folder}: {error.strerror}") from None


if __name__ == "__main__":
    run_main(main)
