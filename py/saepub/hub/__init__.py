"""The Hugging Face Hub: client, repos, collections, rights."""
