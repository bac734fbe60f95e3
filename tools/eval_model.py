"""Phase 6: score a run on a part of its own protocol; writes metrics, predictions, subgroups and pictures."""

import sys

from ser.arguments import Parser, add_run
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser)
    parser.add_argument("--part", default="test", help="test (counted) or val")
    parser.add_argument("--labels", default="", help="score against another label source than the run was trained with")
    parser.add_argument("--speaker-clips", type=int, help="clips of each speaker to normalise by; all without it")
    parser.add_argument("--seen", action="store_true", help="also speakers that the model was trained on: tagged")
    arguments = parser.parse_args()

    from ser import run_evaluation, wording

    scored = run_evaluation.evaluate(
        arguments.run, arguments.part, arguments.labels, arguments.speaker_clips, seen=arguments.seen
    )
    print(wording.evaluation(*scored))
    if (times := scored[1]["test_scorings"]) > 1:
        print(f"note: scored {times} times by now; a test part that chooses is no test part any more", file=sys.stderr)


if __name__ == "__main__":
    main()
