"""The LangChain adapters, with real langchain-core, langchain-classic, langchain and langgraph."""
