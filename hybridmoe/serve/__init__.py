"""HTTP endpoint of one or several models: OpenAI's and Anthropic's APIs, and a chat page."""

from hybridmoe.serve.app import create_app
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.model_pool import ModelPool
from hybridmoe.serve.model_schedule import ScheduleRules, patient
from hybridmoe.serve.model_slot import ModelSource
from hybridmoe.serve.prefix_log import PrefixLog
from hybridmoe.serve.server import Server
from hybridmoe.serve.service import Service

__all__ = [
    "ModelPool", "ModelSource", "PrefixLog", "ScheduleRules", "ServeConfig", "Server", "Service",
    "create_app", "patient",
]  # fmt: skip
