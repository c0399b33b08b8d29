"""The main job: `python -m study.run [STUDY] [--group.field VALUE ...]` trains what a study lacks and ends with its report.

Reads a preset or a YAML file; writes `results/<study>/` (study.json, trials, curves, samples, checkpoints, tensorboard, report).
Exit codes: 0 all trials completed; 1 a trial failed or data are missing; 2 usage; 130 Ctrl-C; 143 SIGTERM.

    main(["smoke", "--out", "/tmp/smoke"])
"""

import sys
from collections.abc import Sequence

import study.entry  # noqa: F401
from study.command import parse
from study.console import complain, how_to_continue, until_closed
from study.files import FULL
from study.study_file import presets
from study.tune.signals import Interrupted, Interrupts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A person's mistake gives one sentence, never a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with Interrupts() as interrupts:
        try:
            command = parse(argv)
            if command.options.presets:
                print(*presets(), sep="\n")
                return 0
            from study import course  # the one border: what lies behind it takes a second to load, and --help needs none of it

            command = course.checked(command)
        except ValueError as error:
            return complain(str(error), 2)
        try:
            return course.run(command, argv, interrupts)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            return complain(explain(error), 1)
        except Interrupted:
            return complain(how_to_continue("stopped", argv), interrupts.exit_code)


def explain(error: BaseException) -> str:
    """What a person is told of an error."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk is full ({error.filename or error.strerror}); free some space, then the same command continues"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}"
    return str(error)


if __name__ == "__main__":
    sys.exit(until_closed(main))
