"""Phase 6: score a run on another corpus, over the labels that both share; without arguments every run on all."""

import argparse

from ser.arguments import add_corpus, add_run
from ser.errors import UserError, tool
from ser.labels import CALM_POLICIES


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run(parser, nargs="?")
    add_corpus(parser, nargs="?")
    parser.add_argument(
        "--calm", default=CALM_POLICIES[0], help="calm, where one side lacks it, counts as `neutral` or is `leave_out`"
    )
    parser.add_argument("--adapt", action="store_true", help="normalise by the other corpus's statistics: tagged")
    arguments = parser.parse_args()
    if arguments.run is not None and not arguments.corpus:
        raise UserError("a corpus is missing: just cross RUN CORPUS, or just cross alone for every run on every other")

    from ser import crossing, wording

    if arguments.run is not None:
        scored = crossing.cross(arguments.run, arguments.corpus, arguments.calm, arguments.adapt)
        print(wording.evaluation(*scored))
    else:
        print(crossing.table(*crossing.matrix(arguments.calm)))


if __name__ == "__main__":
    main()
