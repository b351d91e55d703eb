"""What is examined: opening a VLM, its anatomy, spans, traces and attention statistics; the bundled organism."""
