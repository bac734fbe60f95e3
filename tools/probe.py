"""Phase 2: a linear probe on every layer of stored encoder statistics; writes a table and a picture."""

from ser.arguments import Parser, add_corpus
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_corpus(parser)
    parser.add_argument("features", help="name of a file in gin/features/, such as whisper_tiny_en")
    parser.add_argument("overrides", nargs="*", help="gin bindings such as 'split/fold = 2'")
    arguments = parser.parse_args()

    from ser import config, probing

    probing.check_layers(config.load_features(arguments.features))
    parts = (f"data/{arguments.corpus}", f"features/{arguments.features}", "augment/none", "model/stats_probe")
    settings = config.compose(f"{arguments.corpus}_{arguments.features}_probe", parts, arguments.overrides)
    experiment = config.build(settings)
    print(probing.table(experiment, *probing.probe(experiment)))


if __name__ == "__main__":
    main()
