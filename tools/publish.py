"""Phase 8: upload the export of a run to S3, the Hugging Face Hub or any fsspec target; exported first if need be."""

from ser.arguments import Parser, add_run
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    add_run(parser)
    parser.add_argument("url", help="s3://bucket/path, hf://user/repository, file:///path ...")
    parser.add_argument("--overwrite", action="store_true", help="replace another version that is published there")
    parser.add_argument("--private", action="store_true", help="make a new repository of the hub private")
    arguments = parser.parse_args()

    from ser import exporting, publishing

    publishing.check_target(arguments.url)  # before an export is made for it
    folder = exporting.exported(arguments.run)
    print("\n".join(publishing.publish(folder, arguments.url, arguments.overwrite, arguments.private)))


if __name__ == "__main__":
    main()
