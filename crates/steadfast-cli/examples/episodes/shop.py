#!/usr/bin/env python3
"""An order, its payment and its shipment: three durable programs, as an HTTP end point or as a command.

`shop.py --port 8080` serves episodes, `shop.py --socket PATH` does so behind a Unix socket, `shop.py` alone runs the one
that it reads. An episode is a function of what it is told: it keeps nothing, and what it answers is carried out once.
"""

import argparse
import http.server
import json
import socketserver
import sys

CREDIT = 1000
DAY_MS = 24 * 3600 * 1000


def episode(task):
    """The answer to one episode."""
    _, key = task["instance"].split("/", 1)
    program, event = task["program"], task["event"]
    if program == "payment":
        return {"end": {"paid": event["payload"]["amount"] <= CREDIT}}
    if program == "shipment":
        return {"end": {"parcel": "P-" + key}}
    if program == "order":
        return order(key, event, task["state"])
    return {"fail": f"this is no program {program}", "lasting": True}


def order(key, event, state):
    if event["kind"] == "start":
        wanted = event["payload"]
        if not isinstance(wanted, dict) or not isinstance(wanted.get("amount"), int):
            return {"fail": 'an order is {"item": TEXT, "amount": NUMBER}', "lasting": True}
        log = [f"{wanted['item']} ordered for {wanted['amount']}"]
        return {"state": wanted, "log": log, **await_child("payment/" + key, "charge", wanted)}
    if event["kind"] != "child.ended":
        return {"end": {"order": "late"}}
    if event["source"].startswith("shipment/"):
        return {"end": {"order": "delivered", "by": event["payload"]}}
    if event["payload"] == {"paid": True}:
        return await_child("shipment/" + key, "ship", state)
    return {"end": {"order": "refused"}}


def await_child(child, kind, payload):
    """Begins a child and waits a day for its end."""
    return {
        "messages": [{"to": child, "kind": kind, "payload": payload, "begins": True}],
        "wait": {"any": [{"kind": "child.ended", "source": child}], "within_ms": DAY_MS},
    }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps the connection open from one episode to the next
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for head and body

    def do_POST(self):
        task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(episode(task)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

    def address_string(self):
        return "agent"


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class UnixHandler(Handler):
    disable_nagle_algorithm = False


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, help="serve on this port of 127.0.0.1; 0 takes a free one")
    arguments.add_argument("--socket", help="serve behind this Unix socket")
    chosen = arguments.parse_args()
    if chosen.port is not None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", chosen.port), Handler)
        print(server.server_address[1], flush=True)
        server.serve_forever()
    elif chosen.socket is not None:
        server = UnixServer(chosen.socket, UnixHandler)
        print(chosen.socket, flush=True)
        server.serve_forever()
    else:
        json.dump(episode(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
