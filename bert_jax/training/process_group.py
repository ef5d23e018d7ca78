"""Who takes part in a run of many processes."""

from typing import NamedTuple

from bert_jax.errors import UserError


class ProcessGroup(NamedTuple):
    """Who takes part in a run.

    Attributes:
      coordinator: ``HOST:PORT`` of process 0, where all meet; None asks the cluster (a TPU VM,
        SLURM, GKE, Open MPI) and is a run of one process where there is none.
      processes: how many there are; None with no coordinator.
      process: which one this is, from 0; None with no coordinator.
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead, and
        the run ends.
      connection_timeout: seconds in which all must have met.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    heartbeat_timeout: int = 30
    connection_timeout: int = 300

    def check(self) -> None:
        """Makes sure that the description is whole.

        Raises:
          UserError: it is given in part, or wrongly.
        """
        if self.heartbeat_timeout < 1 or self.connection_timeout < 1:
            raise UserError("--heartbeat_timeout and --connection_timeout are at least 1 second")
        if self.coordinator is None and self.processes is None and self.process is None:
            return
        if self.coordinator is None or self.processes is None or self.process is None:
            raise UserError("--coordinator, --processes and --process go together; give all three")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(
                f"--coordinator={self.coordinator} is no HOST:PORT, such as 10.0.0.1:8476"
            )
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"--process={self.process} is none of --processes={self.processes}, which count "
                "from 0"
            )
