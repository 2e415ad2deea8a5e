"""A worker in this process: what goes over the pipe, without the start of one more Python."""

import json

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.peers.worker import Server


class Local:
    def __init__(self, engine, workload, environment=None):
        self.server = Server()
        self.ask("load", engine=engine, workload=vars(workload) | {"models": str(workload.models)})

    def ask(self, do, **arguments):
        answer = self.server.answer(json.loads(json.dumps({"do": do, **arguments})))
        if "error" in answer:
            raise Spec2SeqError(answer["error"])
        return json.loads(json.dumps(answer["value"]))

    def settle(self):
        """Its threads are the asker's own."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
