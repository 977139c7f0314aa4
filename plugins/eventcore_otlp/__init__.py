"""OTLP: what the log, metric and span plugins share to send OpenTelemetry's protobuf messages over HTTP or gRPC.

A library, not a plugin: it contributes nothing of its own.
"""
