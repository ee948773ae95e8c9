"""The server as replicas on a Ray cluster: the app of `localdiff serve`, one hub in each replica, behind Ray Serve.

    LOCALDIFF_API_KEY=... serve run localdiff.serve.ray_app:build model=/models/chat.gguf threads=8 max_replicas=4

The proxy of Ray Serve can be reached from other machines, so there has to be a key. Each answer of /health and /metrics
is that of one replica; Ray has its own metrics of all. Needs the extra `ray`. Not here: starting clusters.
"""

# no postponed annotations: `serve run` makes the Settings of its words by the type that build() declares
import os
from contextlib import ExitStack
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from .app import Binding, check, make_app
from .guard import Rules
from .opening import Opening
from .options import ServeOptions

# Ray Serve's own settings of the replicas. A replica denoises its requests together, so it should get many.
DEPLOYMENT: dict[str, Any] = {
    "name": "localdiff",
    "max_ongoing_requests": 256,
    "health_check_period_s": 10,
    "graceful_shutdown_timeout_s": 30,
}
AUTOSCALING: dict[str, Any] = {
    "target_ongoing_requests": 16,
    "upscale_delay_s": 10,
    "downscale_delay_s": 300,
}


class Settings(BaseModel):
    """What build() is told; the flags of `localdiff serve` have the same names.

    model          path on every machine, or a downloaded name; None: the small story model of the package
    name           what requests call it; None: the name of its file
    api_key        what clients must send; None: the variable LOCALDIFF_API_KEY
    threads        CPU threads of a replica, which Ray keeps free for it
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    name: str | None = None
    api_key: str | None = None
    threads: int = 1
    isa: str | None = None
    math: str = "auto"
    diffusion: str | None = None
    lora: list[str] = []
    parallel: int = ServeOptions.parallel
    queue: int = ServeOptions.queue
    timeout: float = ServeOptions.timeout
    memory: int | None = None
    min_replicas: int = 1
    max_replicas: int = 4


@serve.deployment(**DEPLOYMENT)
@serve.ingress()
class Replica:
    """One process of the cluster with the models and their schedulers."""

    def __init__(self, opening: Opening, rules: Rules) -> None:
        self._open = ExitStack()
        self._hub = self._open.enter_context(opening.hub())
        self._rules = rules

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return make_app(self._hub, self._rules)

    def __del__(self) -> None:
        self._open.close()


def build(settings: Settings) -> Application:
    """The application for `serve run` and serve.run(); OptionError where there is no key or an option is wrong."""
    key = settings.api_key or os.environ.get("LOCALDIFF_API_KEY") or None
    binding = Binding("0.0.0.0", 0, key)
    check(binding)
    limits = ServeOptions(
        parallel=settings.parallel, queue=settings.queue, timeout=settings.timeout, memory=settings.memory
    )
    loading = {"threads": settings.threads, "isa": settings.isa, "math": settings.math,
               "diffusion": settings.diffusion, "lora": tuple(settings.lora)}  # fmt: skip
    opening = Opening(((settings.name, settings.model),), loading, limits.parallel, limits.queue, limits.timeout,
                      limits.memory)  # fmt: skip
    scale = {**AUTOSCALING, "min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas}
    replicas: Any = Replica
    application: Application = replicas.options(
        autoscaling_config=scale, ray_actor_options={"num_cpus": settings.threads}
    ).bind(opening, Rules(None, key, binding.body))
    return application
