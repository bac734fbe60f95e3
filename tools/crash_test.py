"""Upkeep: kill training and extraction at random moments, and see that they end as if nothing had happened."""

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=21, help="at least so many; 21 by default, some 15 minutes")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    arguments = parser.parse_args()

    from ser import crash_test

    result = crash_test.crash_test(arguments.kills, arguments.seed)
    kills, different = (sum(part[name] for part in result.values()) for name in ("kills", "different"))
    print(f"{kills} kills, {different} runs ended otherwise")
    return 1 if different else 0


if __name__ == "__main__":
    main()
