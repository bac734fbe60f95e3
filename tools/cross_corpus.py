"""Phase 6: score a run on another corpus, over the labels that both share."""

import argparse

from ser.errors import tool
from ser.labels import CALM_POLICIES


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name of a run in outputs/, a path, or last")
    parser.add_argument("corpus", help="crema_d, ravdess, emodb, custom or demo")
    parser.add_argument(
        "--calm", default=CALM_POLICIES[0], help="calm, where one side lacks it, counts as `neutral` or is `leave_out`"
    )
    arguments = parser.parse_args()

    from ser import reporting, runs

    print(reporting.evaluation(*runs.cross(arguments.run, arguments.corpus, arguments.calm)))


if __name__ == "__main__":
    main()
