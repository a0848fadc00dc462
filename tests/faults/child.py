"""A command line that runs under an order: in a fork of the server, or in a process of its own.

python -m faults.child ORDER
"""

import json
import os
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

from faults.interposer import Interposer
from faults.order import Fault, Order


def run(order: Order) -> NoReturn:
    """Become ``lora-tools`` with the arguments of an order, and end as it ends."""
    os.chdir(order.place)
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{order.desk}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, number)
    # As a shell in the foreground starts a process, whatever the tests were started by.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.argv = ["lora-tools", *order.arguments]
    time.monotonic = lambda: 0.0  # reports say how long it took: the only bytes that may differ
    from lora_tools.cli import main
    from lora_tools.files import renames

    if order.old_kernel:
        renames._renameat2 = lambda *_: False
    Interposer(order).install()
    try:
        main()
    except KeyboardInterrupt:
        traceback.print_exc()
        os._exit(130)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def order_of(document: dict[str, Any]) -> Order:
    """Return an order as it came through JSON."""
    fault = Fault(**document.pop("fault")) if document["fault"] else document.pop("fault")
    arguments, roots = tuple(document.pop("arguments")), tuple(document.pop("roots"))
    return Order(arguments=arguments, roots=roots, fault=fault, **document)


if __name__ == "__main__":
    run(order_of(json.loads(sys.argv[1])))
