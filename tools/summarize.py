"""Phase 7: write outputs/summary.csv, .md and .tex, a line for every evaluation, and print it as a table."""

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> None:
    Parser(description=__doc__).parse_args()

    from ser import summary

    path, rows, seeds = summary.write()
    print(summary.table(summary.cells(rows)) if rows else "no evaluation yet; score a run: just eval last")
    if seeds:
        print("\n" + summary.table(summary.seeds_table(seeds)))
    print("".join(f"\n{line}" for line in summary.scorings_text(rows)))
    print(f"{path}: {len(rows)} evaluations\n{path.with_suffix('.md')}\n{path.with_suffix('.tex')}")


if __name__ == "__main__":
    main()
