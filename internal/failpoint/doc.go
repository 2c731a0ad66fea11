// Package failpoint lets a test end the process at a named step of the crash model: [Hit] stands before and after each
// thing that is written to the disk or to the kernel.
//
// In an ordinary build Hit is empty, and the compiler leaves nothing of it. With the build tag "failpoint" it obeys two
// variables of the environment:
//
//	LAMINA_FAILPOINT      NAME or NAME:N: die at the Nth hit of NAME (1 if it does not say). @FILE: what the file says
//	                      at the moment of the hit, so that a running process can be told; none if there is no file.
//	LAMINA_FAILPOINT_LOG  a file to which the name of each hit is appended, a line each.
//
// To die is SIGKILL to itself: no deferred function runs, no buffer is written, nothing is closed in order. What was
// written to the kernel stays, as with any kill -9; what a power cut loses beyond that is for other tests.
//
// A name stands at one place in the code, and is an argument in plain text, so that the tests find all there are. It says what has been
// done: "reap.deleted". What is about to be done is named by an imperative: "reap.delete".
package failpoint
