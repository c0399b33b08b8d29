"""The generator of stories whose entropy is known; imports nothing of ours."""
