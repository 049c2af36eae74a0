"""An HTTP server that speaks the OpenAI protocol: many clients share the rows of one engine."""
