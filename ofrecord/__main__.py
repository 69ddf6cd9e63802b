"""Work with datasets: ``python -m ofrecord check|show|index|merge|export``."""

from runtime.environment import check_environment

check_environment(__name__)

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
    if "" in (*vars(args).values(), *getattr(args, "sources", ())):
        parser.error("an argument is empty, such as a variable that is not set")
    try:
        args.run(args)
    except (PermissionError, NotADirectoryError) as error:  # wherever it comes up first
        raise InputError(f"cannot use {error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    run_main(main)
