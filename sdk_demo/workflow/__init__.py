"""Workflow files: the steps from a log to what devices install, each a command, run again only where its inputs changed.

`flow` reads the file, `inputs` finds out whether a step is up to date, `engine` runs the steps with doit
(https://pydoit.org), the one orchestrator of five compared that needs no other package and compares contents of files.

Errors::

    FlowError                  a workflow that cannot be run
    ├── FlowFileError          the file is no workflow; says where in it
    ├── FlowBusyError          another run of the same workflow, or a step that a killed one left behind, is at work
    └── StepError              a step failed, or has an input that is not there; names the step
"""

from pocketrank.sdk_demo.workflow.errors import FlowBusyError, FlowError, FlowFileError, StepError
from pocketrank.sdk_demo.workflow.flow import Flow, Step

__all__ = ["Flow", "FlowBusyError", "FlowError", "FlowFileError", "Step", "StepError"]
