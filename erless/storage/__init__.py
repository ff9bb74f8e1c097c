"""Files as every stage writes and reads them: staged and renamed, streamed, mapped, digested."""
