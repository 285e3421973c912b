#!/usr/bin/env python3
"""A party outside the cluster that takes part in the exchange itself: what it sends and what it is sent takes effect once.

A device or another system derives a class from Peer, says in receive() what a message does to its state, and calls
send() and turn(). All that must survive a crash is one file: the state, what is being sent, and what was taken and is not
confirmed yet. It is written before anything that follows from it is said. Of the standard library alone.
docs/protocols/exchange.md has the rules.
"""

import copy
import fcntl
import http.client
import json
import os
import socket
import ssl
import time
import urllib.parse

WORDS_MAX = 256


class Refused(Exception):
    """A node answered, and said no."""


class Api:
    """The HTTP API of any node: unix:/PATH/OF/steadfast.sock, http://HOST:PORT or https://HOST:PORT.

    Over TLS, `authority` is the file with the cluster's authority, `host` what the node's certificate is made out to.
    """

    def __init__(self, address, token=None, authority=None, host=None):
        self.address, self.token, self.host = urllib.parse.urlsplit(address), token, host
        self.trust = ssl.create_default_context(cafile=authority) if self.address.scheme == "https" else None

    def ask(self, method, path, body=None, timeout=90):
        connection = self._connect(timeout)
        try:
            headers = {"authorization": "Bearer " + self.token} if self.token else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (http.client.HTTPException, ValueError) as error:
            raise ConnectionError(f"the node broke off: {error!r}") from error
        finally:
            connection.close()
        if response.status == 200:
            return answer
        said = f"{answer.get('code')}: {answer.get('message')}"
        # Not possible now, or too much at once: that passes.
        raise ConnectionError(said) if response.status in (429, 503) else Refused(said)

    def _connect(self, timeout):
        host, port = self.address.hostname or "localhost", self.address.port
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if self.address.scheme == "unix":
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout)
            connection.sock.connect(self.address.path)
        elif self.trust:
            stream = socket.create_connection((host, port), timeout)
            connection.sock = self.trust.wrap_socket(stream, server_hostname=self.host or host)
        return connection


class Peer:
    """The party outside/NAME, with its memory in the file `path`."""

    def __init__(self, api, name, path, state=None):
        self.api, self.path, self.name = api, path, "outside/" + name
        self.url = "/v1/exchange/" + urllib.parse.quote(name, safe="")
        # Two with one memory would send two messages with one number.
        self.lock = open(path + ".lock", "w", encoding="utf-8")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            with open(path, encoding="utf-8") as file:
                self.memory = json.load(file)
        except FileNotFoundError:
            # Larger than that of a life whose memory was lost, so that the cluster can tell them apart.
            epoch = time.time_ns() // 1000
            self.memory = {"epoch": epoch, "state": state, "out": {}, "in": {}}
            self._write(self.memory)

    # What a party says about itself.

    def receive(self, state, message):
        """What a message does: changes `state`, and returns what is sent because of it, as arguments of send()."""
        raise NotImplementedError

    def refused(self, state, message, why):
        """A message of ours is taken by nobody, and never will be; changes `state`."""
        raise RuntimeError(f"{message['kind']} to {message['to']}: {why}")

    def forgotten(self, name):
        """An instance has lost what it remembered: what was sent to it may have taken effect not at all, or twice."""

    def step(self, verb, step):
        """Called at each step, for whoever wants to watch: "took ack", "said confirm"."""

    @property
    def state(self):
        return copy.deepcopy(self.memory["state"])

    def send(self, *messages, state=None):
        """Sends messages, each {"to", "kind", "payload", "correlation", "begins"}, and keeps a new state, at once."""
        memory = copy.deepcopy(self.memory)
        if state is not None:
            memory["state"] = state
        self._queue(memory, messages)
        self._write(memory)
        for _ in messages:
            self.step("recorded", "message")

    def is_quiet(self):
        """Whether nothing is left over of any message, in either direction."""
        return not any(out["entries"] for out in self.memory["out"].values()) and not any(
            peer["above"] for peer in self.memory["in"].values()
        )

    def turn(self, wait=10):
        """Says all that is unfinished, waits for what is said, and answers it. Harmless to repeat, at any time."""
        heard = self._say(self._unfinished())
        if not heard:
            seconds = wait if self.is_quiet() else min(wait, 1)
            heard = self.api.ask("GET", f"{self.url}?wait={seconds}")["words"]
        while heard:
            heard = self._say([answer for word in heard for answer in self._take(word)])

    # The four steps.

    def _queue(self, memory, messages):
        for message in messages:
            out = memory["out"].setdefault(message["to"], {"last": 0, "entries": {}})
            out["last"] += 1
            out["entries"][str(out["last"])] = {"phase": "sending", **message}

    def _unfinished(self):
        words = []
        for to, out in self.memory["out"].items():
            floor = min(map(int, out["entries"]), default=out["last"] + 1) - 1
            for seq, entry in out["entries"].items():
                word = {"from": self.name, "epoch": self.memory["epoch"], "to": to, "seq": int(seq)}
                if entry["phase"] == "sending":
                    said = {name: value for name, value in entry.items() if name not in ("phase", "to")}
                    words.append({"step": "message", "floor": floor, **word, **said})
                else:
                    words.append({"step": "confirm", **word})
        for sender, peer in self.memory["in"].items():
            for seq, phase in peer["above"].items():
                if phase == "taken":
                    words.append(self._ack({"from": sender, "epoch": peer["epoch"], "to": self.name, "seq": int(seq)}))
        return words

    def _say(self, words):
        heard = []
        for first in range(0, len(words), WORDS_MAX):
            said = words[first : first + WORDS_MAX]
            heard += self.api.ask("POST", self.url, {"words": said})["words"]
            for word in said:
                self.step("said", word["step"])
        return heard

    def _take(self, word):
        """Remembers what a word changes, then gives the answers to it."""
        self.step("heard", word["step"])
        memory = copy.deepcopy(self.memory)
        take = {
            "message": self._take_message,
            "ack": self._take_ack,
            "confirm": self._take_confirm,
            "confirm-ack": self._take_confirm_ack,
            "refused": self._take_refused,
        }[word["step"]]
        answers = take(memory, word)
        if memory != self.memory:
            self._write(memory)
        self.step("took", word["step"])
        return answers

    def _ack(self, word):
        return {"step": "ack", **self._id(word), "receiver_epoch": self.memory["epoch"]}

    @staticmethod
    def _id(word):
        return {name: word[name] for name in ("from", "epoch", "to", "seq", "last") if name in word}

    @staticmethod
    def _numbers(word):
        return range(word["seq"], word.get("last", word["seq"]) + 1)

    def _stream(self, memory, word, floor):
        """What is remembered of a sender; nothing of a life of it that is over."""
        peer = memory["in"].get(word["from"])
        if peer is None or peer["epoch"] < word["epoch"]:
            peer = memory["in"][word["from"]] = {"epoch": word["epoch"], "low": floor, "above": {}}
        return peer if peer["epoch"] == word["epoch"] else None

    def _take_message(self, memory, word):
        peer = self._stream(memory, word, word["floor"])
        if peer is None:
            return []
        if word["seq"] > peer["low"] and str(word["seq"]) not in peer["above"]:
            peer["above"][str(word["seq"])] = "taken"
            peer["low"] = max(peer["low"], word["floor"])
            self._settle(peer)
            self._queue(memory, self.receive(memory["state"], word) or [])
        return [self._ack(word)]

    def _take_confirm(self, memory, word):
        peer = self._stream(memory, word, 0)
        if peer is not None:
            for seq in self._numbers(word):
                if seq > peer["low"]:
                    peer["above"][str(seq)] = "confirmed"
            self._settle(peer)
        return [{"step": "confirm-ack", **self._id(word)}]

    @staticmethod
    def _settle(peer):
        """Forgets what is finished from the mark on."""
        for seq in [seq for seq in peer["above"] if int(seq) <= peer["low"]]:
            del peer["above"][seq]
        while peer["above"].get(str(peer["low"] + 1)) == "confirmed":
            peer["low"] += 1
            del peer["above"][str(peer["low"])]

    def _take_ack(self, memory, word):
        out = memory["out"].get(word["to"])
        if word["epoch"] != self.memory["epoch"] or out is None:
            return []
        if out.setdefault("receiver_epoch", word["receiver_epoch"]) < word["receiver_epoch"]:
            out["receiver_epoch"] = word["receiver_epoch"]
            self.forgotten(word["to"])
        for seq in self._numbers(word):
            if str(seq) in out["entries"]:
                out["entries"][str(seq)] = {"phase": "confirming"}
        # Also of what is finished already: the instance asks because it does not know.
        return [{"step": "confirm", **self._id(word)}]

    def _take_confirm_ack(self, memory, word):
        out = memory["out"].get(word["to"], {"entries": {}})
        for seq in self._numbers(word) if word["epoch"] == self.memory["epoch"] else []:
            if out["entries"].get(str(seq), {"phase": "sending"})["phase"] == "confirming":
                del out["entries"][str(seq)]
        return []

    def _take_refused(self, memory, word):
        out = memory["out"].get(word["to"], {"entries": {}})
        entry = out["entries"].get(str(word["seq"]))
        if word["epoch"] != self.memory["epoch"] or entry is None or entry["phase"] != "sending":
            return []
        self.refused(memory["state"], entry, word["why"])
        out["entries"][str(word["seq"])] = {"phase": "confirming"}
        return [{"step": "confirm", **self._id(word)}]

    def _write(self, memory):
        """The whole file or the one before, whatever crashes."""
        new = self.path + ".new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump(memory, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.memory = memory
