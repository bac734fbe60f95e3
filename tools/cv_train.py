"""Phase 6: train and test every fold of an experiment's scheme, resumable, and pool the out-of-fold predictions."""

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("experiment", help="name of a file in gin/exp/")
    parser.add_argument("overrides", nargs="*", help="gin bindings such as 'train/epochs = 5'")
    parser.add_argument("--jobs", type=int, default=1, help="folds that train at the same time")
    parser.add_argument("--gpus", type=int, default=1, help="processes that share each training")
    arguments = parser.parse_args()

    from ser import cross_validation, wording

    done = cross_validation.cross_validate(
        arguments.experiment, arguments.overrides, jobs=arguments.jobs, gpus=arguments.gpus
    )
    print(wording.evaluation(*done))


if __name__ == "__main__":
    main()
