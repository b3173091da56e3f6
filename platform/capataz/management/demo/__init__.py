"""The demo: a whole platform in a temporary directory, at work and losing a worker, seen from outside.

``performance`` tells the story; the other modules are its parts, and need neither the work nor the window.
"""
