"""OpenTelemetry's names for generative AI, in this one file because they still change.

Names as of semantic conventions 1.44, since when they are kept apart (status "Development"):
https://github.com/open-telemetry/semantic-conventions-genai

With ``conventions = "genai"`` they apply to operations of category ``model``: a field on the left becomes the attribute
on the right, the span is named ``{operation} {model}``, and its kind is CLIENT. Fields that are not listed keep their
names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ATTRIBUTES", "CAPTURE_CONTENT", "CONTENT", "MODEL", "OPERATION"]

OPERATION = "gen_ai.operation.name"
MODEL = "gen_ai.request.model"

ATTRIBUTES: Mapping[str, str] = {
    "operation": OPERATION,
    "provider": "gen_ai.provider.name",
    "model": MODEL,
    "request_model": MODEL,
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "conversation_id": "gen_ai.conversation.id",
    "output_type": "gen_ai.output.type",
    "choice_count": "gen_ai.request.choice.count",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "stop_sequences": "gen_ai.request.stop_sequences",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_creation_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "time_to_first_chunk": "gen_ai.response.time_to_first_chunk",
    "agent_id": "gen_ai.agent.id",
    "agent_name": "gen_ai.agent.name",
    "tool_name": "gen_ai.tool.name",
    "tool_call_id": "gen_ai.tool.call.id",
    "server_address": "server.address",
    "server_port": "server.port",
    "input_messages": "gen_ai.input.messages",
    "output_messages": "gen_ai.output.messages",
    "system_instructions": "gen_ai.system_instructions",
}

CONTENT = frozenset({"input_messages", "output_messages", "system_instructions"})
"""Fields with what people wrote: left out, unless ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is true."""

CAPTURE_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
