#!/usr/bin/env python3
"""An electricity meter outside the cluster: sends its readings to an instance, which bills each; none is lost or billed twice.

`meter.py --api unix:/var/lib/steadfast/steadfast.sock --name meter-1 --file meter-1.json --to home/1 --readings 10`
ends when it has as many bills as readings and nothing is left over; it may be killed at any time and started again.
"""

import argparse
import json
import sys
import time

from peer import Api, Peer


class Meter(Peer):
    """Keeps how many readings it took, and the bills it got."""

    def receive(self, state, message):
        if message["kind"] == "bill":
            state["bills"].append(message["payload"])

    def refused(self, state, message, why):
        state["refused"].append({"reading": message["payload"], "why": why})

    def read(self, to):
        state = self.state
        state["taken"] += 1
        number = state["taken"]
        reading = {"number": number, "kwh": 100 + number}
        self.send({"to": to, "kind": "reading", "payload": reading, "begins": True}, state=state)


def main(kind=Meter):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api", required=True, help="a node: unix:/PATH, http://HOST:PORT or https://HOST:PORT")
    parser.add_argument("--token-file", help="a file that holds a token with the role operate")
    parser.add_argument("--authority", help="over TLS, the file with the cluster's authority")
    parser.add_argument("--host", help="over TLS, the name in the node's certificate")
    parser.add_argument("--name", required=True, help="the party's name")
    parser.add_argument("--file", required=True, help="its memory")
    parser.add_argument("--to", required=True, help="the instance that bills")
    parser.add_argument("--readings", type=int, required=True)
    given = parser.parse_args()
    token = open(given.token_file, encoding="utf-8").read().strip() if given.token_file else None
    api = Api(given.api, token, given.authority, given.host)
    meter = kind(api, given.name, given.file, {"taken": 0, "bills": [], "refused": []})
    while True:
        state = meter.state
        answered = len(state["bills"]) + len(state["refused"])
        if meter.is_quiet() and answered == given.readings:
            print(json.dumps(state))
            return
        if meter.is_quiet() and state["taken"] == answered:
            meter.read(given.to)
        try:
            meter.turn()
        except OSError as error:
            print(f"tried again soon: {error}", file=sys.stderr)
            time.sleep(0.2)


if __name__ == "__main__":
    main()
