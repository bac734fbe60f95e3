"""Run another tool in several processes that share its work, as torchrun does; what `gpus=N` stands for."""

import argparse

from ser.arguments import Parser
from ser.errors import tool


@tool
def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("processes", help="their number; with GPUs, one each")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the tool and its arguments: tools/train.py EXP ...")
    arguments = parser.parse_args()

    from ser.launching import run_in_processes

    return run_in_processes(arguments.processes, arguments.command)


if __name__ == "__main__":
    main()
