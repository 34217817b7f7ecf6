"""The Rev.ai service.

transcriber is the service; client talks to it, transcript reads what it sends back.
"""
