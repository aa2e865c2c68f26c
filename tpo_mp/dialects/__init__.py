"""Wire dialects: one codec of request, reply, stream event and error each."""
