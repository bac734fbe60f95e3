"""Hear and see what each operation of augmentation does: sounds and a picture in outputs/augment-demo/."""

from pathlib import Path

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("sound", nargs="?", type=Path, help="a sound file; without it one of the built-in corpus")
    parser.add_argument("--seed", type=int, default=0, help="of what the operations draw")
    arguments = parser.parse_args()

    from ser.augment_demo import augment_demo

    print("\n".join(map(str, augment_demo(arguments.sound, arguments.seed))))


if __name__ == "__main__":
    main()
