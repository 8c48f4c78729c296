"""All policy of a server: pure, sans-I/O, and without an idea of packets, samples or SQL.

house       joins the others: one request in, what is to happen out
people      what each request about accounts, follows, blocks, access and bans does
accounts    who there is, and what is between them
programme   every space that is announced, live or over; mail, posts: what people write
desk        reports, and the evidence that goes with them
space       a live space: what each request in it does
gathering   its members, coming and going; stage, invites, talk, volumes: their own small parts
feed        what everyone in a space is told
limits      how often somebody may ask
effects     what comes out of all this, as values; asking, tokens: what several of them need
"""
