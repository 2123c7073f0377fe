/* System calls that fail when told to. */
#ifndef STREAMCORE_TESTS_FAULTS_H
#define STREAMCORE_TESTS_FAULTS_H

#include <stdbool.h>

/* The `number`-th call from now on (1: the next), and with `sticky` all behind it, fails with `error_number`. Counted
 * are all calls of sc_os that can fail but waits, unlocks and unmaps. */
void faults_arm(int number, int error_number, bool sticky);
/* The same with reads and writes alone, which do a part of what they were asked for: all but a byte, half of it, a
 * byte.
 */
enum faults_how { FAULT_ERROR, FAULT_ONE_LESS, FAULT_HALF, FAULT_ONE_BYTE };
void faults_arm_short(int number, enum faults_how how, bool sticky);
/* The process ends by SIGKILL before that call. */
void faults_arm_kill(int number);
/* From now on nothing fails any more; syncs are still watched. */
void faults_pause(void);
bool faults_failed(void);
/* How often a file was synced behind a sync of it that failed, since faults_arm. */
int faults_repeated_syncs(void);
/* Back to the real calls; true when a call failed. */
bool faults_disarm(void);
/* How often each was called since faults_arm. */
int faults_calls(void);
/* What failed, for messages. */
const char *faults_name(void);
const char *faults_path(void);

#endif
