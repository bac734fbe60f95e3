"""Phases 3-5: train an experiment with and without some changes, over several seeds, and compare on validation."""

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("experiment", help="name of a file in gin/exp/")
    parser.add_argument(
        "changes", nargs="*", help="each a gin binding such as 'train/label_smoothing = 0.0', or several with ; between"
    )
    parser.add_argument(
        "--common", action="append", default=[], help="a gin binding of all that is trained; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant, with seed = 1, 2 and so on")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--gpus", type=int, default=1, help="processes that share each training")
    arguments = parser.parse_intermixed_args()

    from ser import ablating

    done = ablating.ablate(
        arguments.experiment, arguments.changes, arguments.common, arguments.seeds, arguments.jobs, arguments.gpus
    )
    print(ablating.table(*done))


if __name__ == "__main__":
    main()
