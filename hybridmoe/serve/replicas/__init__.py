"""Replicas of a model behind one endpoint: forwarding, prefix-aware routing, retries.

The front has the HTTP side of an endpoint, and each replica a whole one, which the front calls.
Nothing here needs Ray but ray_router.py and ray_handle.py.
"""
