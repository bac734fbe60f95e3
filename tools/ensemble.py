"""Phase 7: score several runs as one, their probabilities or logits averaged."""

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="names of two or more runs that are scored on the same clips")
    parser.add_argument("--part", default="test", help="test or val, or the name of an evaluation")
    parser.add_argument("--average", default="probabilities", help="of: probabilities or logits")
    parser.add_argument("--weights", default="uniform", help="uniform, or fitted on validation")
    arguments = parser.parse_args()

    from ser import ensembles, wording

    scored = ensembles.ensemble(arguments.runs, arguments.part, arguments.average, arguments.weights)
    print(wording.evaluation(*scored))
    for run, weight in scored[1]["members"].items():
        print(f"  {weight:.3f}  {run}")


if __name__ == "__main__":
    main()
