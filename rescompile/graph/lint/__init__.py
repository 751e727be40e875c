"""The fusion contract, checked before an engine is built."""
