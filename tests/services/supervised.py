"""A supervisor in a process of its own, for the tests to signal and to kill.

Arguments: a directory for logs and ``processes.json``, and the processes as a JSON list of objects with
``name``, ``argv``, and optionally ``is_server`` and ``once`` (run it to its end before going on).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from capataz.home import Process
from capataz.services.child import ProcessSpec
from capataz.services.output import Output
from capataz.services.supervisor import Stopped, Supervisor


def main() -> None:
    place, processes = Path(sys.argv[1]), json.loads(sys.argv[2])

    def write(running: list[Process]) -> None:
        new = place / "processes.new"
        new.write_text(json.dumps([asdict(process) for process in running]))
        new.replace(place / "processes.json")

    output = Output(place / "logs")
    with Supervisor(output, write) as supervisor:
        try:
            for process in processes:
                once = process.pop("once", False)
                spec = ProcessSpec(**process)
                if once:
                    output.say(f"{spec.name} gave {supervisor.run_to_its_end(spec)}")
                else:
                    supervisor.start(spec)
            supervisor.run()
        except Stopped:
            output.say("was stopped meanwhile")
    output.close()


if __name__ == "__main__":
    main()
