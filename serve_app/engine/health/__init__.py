"""Whether an engine is dead, hung, slow or well."""
