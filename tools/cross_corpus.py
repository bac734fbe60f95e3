"""Phase 6: score a run on another corpus, over the labels that both share; without arguments every run on all."""

from ser.arguments import Parser, add_corpus, add_run
from ser.errors import UserError, tool
from ser.labels import CALM_POLICIES


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser, nargs="?")
    add_corpus(parser, nargs="?")
    parser.add_argument(
        "--calm", default=CALM_POLICIES[0], help="calm, where one side lacks it, counts as `neutral` or is `leave_out`"
    )
    parser.add_argument("--adapt", action="store_true", help="normalise by the other corpus's statistics: tagged")
    parser.add_argument(
        "--labels",
        default="",
        help="label source of CREMA-D: intended (default), voice, multimodal; with RUN and CORPUS",
    )
    arguments = parser.parse_args()
    if arguments.run is not None and not arguments.corpus:
        raise UserError("a corpus is missing: just cross RUN CORPUS, or just cross alone for every run on every other")

    if arguments.run is None and arguments.labels:
        raise UserError("labels go with a run and a corpus: just labels=voice cross RUN crema_d")

    from ser import cross_corpus, wording

    if arguments.run is not None:
        run, corpus, labels = arguments.run, arguments.corpus, arguments.labels or "intended"
        scored = cross_corpus.cross(run, corpus, arguments.calm, arguments.adapt, label_source=labels)
        print(wording.evaluation(*scored))
    else:
        print(cross_corpus.table(*cross_corpus.matrix(arguments.calm)))


if __name__ == "__main__":
    main()
