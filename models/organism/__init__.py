"""The bundled small VLM family: trained, not random; the default of every command."""
