/* System calls that fail when told to. */
#ifndef STREAMCORE_TESTS_FAULTS_H
#define STREAMCORE_TESTS_FAULTS_H

#include <stdbool.h>

/* The `number`-th call from now on (1: the next), and with `sticky` all behind it, fails with `error_number`. Counted
 * are all calls of sc_os that can fail but waits, unlocks and unmaps. */
void faults_arm(int number, int error_number, bool sticky);
/* The process ends by SIGKILL before that call. */
void faults_arm_kill(int number);
/* Back to the real calls; true when a call failed. */
bool faults_disarm(void);
/* How often each was called since faults_arm. */
int faults_calls(void);
/* What failed, for messages. */
const char *faults_name(void);

#endif
