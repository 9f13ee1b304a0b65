"""HTTP endpoint of one model: OpenAI's and Anthropic's APIs, and a chat page."""

from hybridmoe.serve.app import create_app
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.server import Server
from hybridmoe.serve.service import Service

__all__ = ["ServeConfig", "Server", "Service", "create_app"]
